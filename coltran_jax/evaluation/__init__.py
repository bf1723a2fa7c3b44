"""Metrics of colorizations, protocols, and reports."""
