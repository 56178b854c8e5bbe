"""The whole way of RLHF, stage by stage."""
