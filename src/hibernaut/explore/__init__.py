"""Every run of a machine: every failure, every order, and the shortest run that loses a page."""
