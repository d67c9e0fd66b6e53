"""`lakthan doctor`: the machine of a service, its configuration and its database, looked at from inside."""
