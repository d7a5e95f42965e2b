"""What libvirt does to the directory of a storage pool and to an image that it gives to a machine,
and what QEMU then does to it, call by call. Prints as JSON what came of each call: its result, or
the name of its errno. Judges nothing.

usage: libvirt.py DIR                    the pool alone, after a refresh
       libvirt.py DIR drop               nothing of its files is in the kernel's page cache any more
       libvirt.py DIR IMAGE UID OWNER    UID: who calls; OWNER: whom the image is to belong to
"""

import errno
import fcntl
import json
import mmap
import os
import struct
import sys

target = sys.argv[1]
# VIR_STORAGE_MAX_HEADER (storage_source.c).
HEADER_BYTES = 0x8200
BLKGETSIZE64, CDROM_DRIVE_STATUS = 0x80081272, 0x5326
F_OFD_SETLK = 37
LABEL = b"system_u:object_r:svirt_image_t:s0:c1,c2\0"



def name_of(error):
    # Linux has two names for this one.
    return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode[error.errno]


def tried(call, *args):
    try:
        result = call(*args)
        return result if isinstance(result, (int, str)) else "done"
    except OSError as error:
        return name_of(error)


def refreshed(path):
    """virStorageBackendRefreshVolTargetUpdate: a failure that it does not tolerate fails the pool."""
    os.lstat(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        stat = os.fstat(fd)
        if os.path.stat.S_ISDIR(stat.st_mode):
            return {"directory": True}
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        label = tried(os.getxattr, fd, "security.selinux")
        os.lseek(fd, 0, os.SEEK_SET)
        header = b""
        while len(header) < HEADER_BYTES:
            piece = os.read(fd, HEADER_BYTES - len(header))
            if not piece:
                break
            header += piece
        return {"size": stat.st_size, "blocks": stat.st_blocks, "label": label,
                "header": header.hex(), "header_bytes": len(header)}
    finally:
        os.close(fd)


def pool():
    """virStorageBackendRefreshLocal, after the directory was looked at."""
    volumes = {}
    for name in os.listdir(target):
        try:
            volumes[name] = refreshed(os.path.join(target, name))
        except OSError as error:
            volumes[name] = name_of(error)
    room = os.statvfs(target)
    return {
        "directory": os.path.isdir(target),
        "access": os.access(target, os.R_OK | os.X_OK),
        "volumes": volumes,
        "capacity": room.f_frsize * room.f_blocks,
        "available": room.f_frsize * room.f_bavail,
    }


def labelled():
    """The security drivers: the owner remembered, image and owner set, as for a machine that starts."""
    return {
        "remember": tried(os.getxattr, image, "trusted.libvirt.security.dac"),
        "remembering": tried(os.setxattr, image, "trusted.libvirt.security.dac", b"+0:+0"),
        "forgetting": tried(os.removexattr, image, "trusted.libvirt.security.dac"),
        "chown": tried(os.chown, image, owner, owner),
        "chown_to_group": tried(os.chown, image, -1, owner),
        "relabel": tried(os.setxattr, image, "security.selinux", LABEL),
        "relabelled": tried(os.getxattr, image, "security.selinux"),
    }


def lock(fd, kind, start):
    # struct flock: l_type, l_whence, l_start, l_len, l_pid, with its padding.
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhxxxxqqixxxx", kind, os.SEEK_SET, start, 1, 0))


def read_by_qemu(flags):
    """block/file-posix.c: opened, asked what it is, locked for reading, read at a few places."""
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC | flags)
    other = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        # O_DIRECT wants memory that is aligned.
        buffer = mmap.mmap(-1, 4096)
        got = os.preadv(fd, [buffer], size // 2 // 4096 * 4096)
        with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            same = mapped[size // 2 // 4096 * 4096:][:got] == buffer[:got]
        return {
            "size": size,
            "sizes_of_a_device": tried(fcntl.ioctl, fd, BLKGETSIZE64, bytes(8)),
            "a_drive": tried(fcntl.ioctl, fd, CDROM_DRIVE_STATUS, 0),
            "locks": [tried(lock, each, fcntl.F_RDLCK, 100) for each in (fd, other)],
            "data": tried(os.lseek, fd, 0, os.SEEK_DATA),
            "hole": tried(os.lseek, fd, 0, os.SEEK_HOLE),
            "advice": tried(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED),
            "read": got,
            "mapped_is_read": same,
        }
    finally:
        os.close(fd)
        os.close(other)


def dropped():
    """As when memory is short: whatever of the files is not in use goes."""
    for name in os.listdir(target):
        fd = os.open(os.path.join(target, name), os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


if len(sys.argv) == 2:
    json.dump(pool(), sys.stdout)
    sys.exit()
if len(sys.argv) == 3:
    dropped()
    sys.exit()

image, uid, owner = os.path.join(target, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if uid != os.getuid():
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
json.dump({
    "pool": pool(),
    "labelled": labelled(),
    "buffered": read_by_qemu(0),
    "direct": read_by_qemu(os.O_DIRECT),
    "for_writing": tried(os.open, image, os.O_RDWR | os.O_CLOEXEC),
}, sys.stdout)
