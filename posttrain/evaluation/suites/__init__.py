"""Evaluation suites: any model, by directory or by endpoint, on questions that no recipe has to bring."""
