//! The tests of floating point: against another implementation in every mode
//! ([`differential`]), against the host where it can do the same ([`host_rounding`]), square
//! roots by their definition ([`roots`]), and by hand where the specification is explicit
//! ([`directed`]). Operands come from [`operands`], which favours the borders.

mod differential;
mod directed;
mod host_rounding;
mod operands;
mod roots;
