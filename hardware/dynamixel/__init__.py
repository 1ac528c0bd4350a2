"""DYNAMIXEL servos: packets, the bus, control tables."""
