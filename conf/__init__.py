"""The configuration of experiments, in groups: agent, env, eval, experiment."""
