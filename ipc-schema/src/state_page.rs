//! state_page.
