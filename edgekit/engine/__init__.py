"""A container engine, for builder and device alike: port, Docker adapter, errors in our words."""
