"""The feedback loop: serve, log, preprocess, learn, judge, again; see ``experiments.loop``."""
