"""Wrapper models for the harnesses; installed as vtw_eval.model_adapters."""
