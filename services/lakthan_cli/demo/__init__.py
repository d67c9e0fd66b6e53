"""`lakthan demo`: a whole national PKI with its services on one machine."""
