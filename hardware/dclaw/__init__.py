"""The three-finger D'Claw: nine Dynamixel servos, one camera."""
