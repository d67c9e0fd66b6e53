"""What is known about the clock: the sources that are asked, and what they say.

`values` has the words, `kernel`, `chrony` and `quorum` (over `ntp`) are the sources, `leap` knows leap seconds, `audit`
records what happens, `opening` puts it together. The decision is `lakthan_tsa.clock_guard`'s alone.
"""
