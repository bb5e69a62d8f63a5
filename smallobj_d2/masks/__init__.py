"""Shapes of instances: polygons and run lengths, which the method and the datasets both use."""
