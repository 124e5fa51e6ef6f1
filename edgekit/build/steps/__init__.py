"""Build steps: functions from files to files, with declared inputs."""
