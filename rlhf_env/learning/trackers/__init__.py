"""Where metrics go: one file for each library, which it alone imports. `rlhf_env.learning` registers them by name."""
