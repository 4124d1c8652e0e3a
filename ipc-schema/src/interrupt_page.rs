//! interrupt_page.
