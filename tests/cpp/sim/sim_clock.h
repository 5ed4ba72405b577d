// The time of this program: what base/clock.h tells is set by the simulation. Linked in place of
// base/clock.cc, so that nothing here knows another time.
//
// Threads: one.
#pragma once

#include <cstdint>

namespace hicache::testing {

/// What the clock of the machine shows whose code runs next.
void set_clock_ns(uint64_t ns);
/// Random tokens come from this seed from now on; before, from the system.
void seed_tokens(uint64_t seed);

}  // namespace hicache::testing
