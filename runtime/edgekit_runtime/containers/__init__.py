"""Slots that are images: fetched, checked, started and removed through a container engine."""
