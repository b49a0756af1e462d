// Package testkit is what tests of several packages need of the machine: a network
// namespace for a test binary, an ordinary user to run it, the end of a process; and
// the patience that any machine's speed asks for.
//
// Nothing but tests imports it.
//
// Invariant: what a test makes of the machine is seen by nobody else and ends with
// it.
package testkit
