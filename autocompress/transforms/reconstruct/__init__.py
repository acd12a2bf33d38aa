"""Reconstruction: layers refitted in closed form, one after another."""
