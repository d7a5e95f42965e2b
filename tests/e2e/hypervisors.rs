//! What hypervisors do to a directory of images, replayed as system calls and done by the real ones
//! where they run; and `isotope connect`, which tells them of it. There is no Proxmox VE beside
//! Debian's packages, so its part is a replay alone.

mod connect;
pub(crate) mod libvirt;
mod proxmox;
mod virsh;
