"""Codecs without I/O: gzip members, the encrypted stream and the xbstream parser."""
