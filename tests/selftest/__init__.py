"""The self-test on the real servers, with faults planted one at a time."""
