"""OpenStack Trove on this machine: its real services and guest agent, and stand-ins for the rest.

Nova, Neutron, Cinder, Glance and Docker are stand-ins. A "machine" is a set of processes with their
own mounts, a "container" is a process with its own mounts inside a machine.
"""
