"""Pure codecs: gzip members, the sealed stream and the xbstream parser; no I/O."""
