"""Writes a cpio archive in the "newc" format, which the kernel unpacks as an initramfs
(linux: Documentation/driver-api/early-userspace/buffer-format.rst).

The same entries give the same bytes: sorted, owned by root, dated 1970. Device nodes need
no root, since nothing is made on this machine.
"""

import gzip
import os
import stat


class Initramfs:
    def __init__(self):
        self.entries = {}  # path -> (mode, content, major, minor)

    def file(self, path, content, permissions=0o644):
        self.add(path, stat.S_IFREG | permissions, content)

    def folder(self, path):
        self.add(path, stat.S_IFDIR | 0o755)

    def device(self, path, major, minor):
        self.add(path, stat.S_IFCHR | 0o600, b"", major, minor)

    def add(self, path, mode, content=b"", major=0, minor=0):
        parent = os.path.dirname(path)
        if parent and parent not in self.entries:
            self.folder(parent)
        self.entries[path] = (mode, content, major, minor)

    def compressed(self):
        # sorted: a folder comes before what is in it
        paths = enumerate(sorted(self.entries), start=1)
        records = [record(inode, path, *self.entries[path]) for inode, path in paths]
        records.append(record(0, "TRAILER!!!", 0, b"", 0, 0))
        return gzip.compress(b"".join(records), compresslevel=9, mtime=0)


def record(inode, path, mode, content, major, minor):
    name = path.encode() + b"\0"
    uid = gid = mtime = dev_major = dev_minor = check = 0
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (
        (inode, mode, uid, gid, links, mtime, len(content)) + (dev_major, dev_minor, major, minor, len(name), check)
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return padded(header + name) + padded(content)


def padded(data):
    """To a multiple of four bytes, as newc wants names and contents."""
    return data + bytes(-len(data) % 4)
