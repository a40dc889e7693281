"""The small trained modules on top of a frozen backbone."""
