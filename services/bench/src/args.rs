//! What the manifest asks for.

/// What to do, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// Measure.
    pub bench: bool,
    /// Try what is forbidden.
    pub probe: bool,
    /// Try guests that the processor refuses to enter: needs a kernel with the invariant checker.
    pub entries: bool,
    /// The machine is Bochs: leave out what that emulator dies of, instead of what QEMU dies of.
    pub bochs: bool,
    /// Have the machine switched off at the end.
    pub power_off: bool,
}

/// Reads words. Without any, it measures. The error is the first word that means nothing.
pub fn parse(text: &str) -> Result<Args, &str> {
    let mut args = Args::default();
    for word in text.split_whitespace() {
        match word {
            "bench" => args.bench = true,
            "probe" => args.probe = true,
            "entries" => args.entries = true,
            "emulator=bochs" => args.bochs = true,
            "poweroff" => args.power_off = true,
            _ => return Err(word),
        }
    }
    args.bench |= !(args.probe || args.entries);
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let of = |bench, probe, power_off| {
            Ok(Args {
                bench,
                probe,
                power_off,
                ..Args::default()
            })
        };
        assert_eq!(parse(""), of(true, false, false));
        assert_eq!(parse(" poweroff"), of(true, false, true));
        assert_eq!(parse("probe poweroff"), of(false, true, true));
        assert_eq!(parse("probe bench"), of(true, true, false));
        assert_eq!(parse("probe fast"), Err("fast"));
        assert!(parse("entries").is_ok_and(|a| a.entries && !a.bench && !a.bochs));
        assert!(parse("entries emulator=bochs").is_ok_and(|a| a.entries && a.bochs));
    }
}
