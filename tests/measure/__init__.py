"""Measurements that take minutes; tests run small versions of them."""
