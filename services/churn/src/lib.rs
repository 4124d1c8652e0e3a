//! The churn server: makes and destroys, over and over, and counts what is left.
//!
//! Job: show that nothing stays. It makes Spaces with threads, mappings and queues, and GuestSpaces with vCPUs, mappings and routes,
//! as servers and VMs are for the kernel, ends them in every order, now and then with a Pool of their own, and compares the figures of
//! its Pool afterwards with those before. With a kernel that measures, it tells how long interrupts were off. Place: a further server of
//! test systems. Trust: it has what every further server has.
//!
//! [`args`] reads the manifest's text; the binary does the work.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod args;
