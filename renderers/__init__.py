"""Geometry and cameras in, pictures out.

Importing this package loads numpy only; a backend's library is imported when the backend is first used.
"""
