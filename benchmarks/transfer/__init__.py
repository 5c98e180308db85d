"""Transfer to another reader."""
