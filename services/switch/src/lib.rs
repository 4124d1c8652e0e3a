//! The switch: joins the network cards of VMs, as the cables and the box between them would.
//!
//! Job: frames go from port to port by the addresses that were seen at them ([`table`]), within each network and within each port's limit
//! ([`switch`]). Place: between the device models of network cards, each over a link of its own ([`ipc_schema::link`]); drivers of real cards
//! will be ports, too. Trust: ports are hostile: what one sends is looked at once, and can garble, lose or delay frames of its own and, as on
//! any network, claim another's address; it reaches no other network and no memory but its link. It sees every frame of all networks, so a
//! network is as private as this server is sound.
//!
//! Frames are not queued here. A port that does not take its frames loses them, as behind any switch, and delays nobody.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod switch;
pub mod table;
