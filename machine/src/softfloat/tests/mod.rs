//! The tests of floating point: both paths against another implementation in every mode
//! ([`differential`]) and by hand where the specification is explicit ([`directed`]); the
//! reference path against the host ([`host_rounding`]), and its square roots by their
//! definition ([`roots`]); the host's path against the reference path ([`paths`]). Operands come from [`operands`], which favours the borders.

mod differential;
mod directed;
mod host_rounding;
mod operands;
mod paths;
mod roots;
