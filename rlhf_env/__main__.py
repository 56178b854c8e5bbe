"""`python -m rlhf_env` is `rlhf-env`."""

from rlhf_env.cli.main import main

if __name__ == "__main__":
    main()
