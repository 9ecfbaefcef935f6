// Signals: a handler says that the work is to end, and the work asks between its pieces.
#pragma once

namespace nola::files {

// Thrown where the work ends; no error, and so none that anybody else catches.
struct Stopped {};

// Called by handlers of signals.
void stop_for(int signal) noexcept;

// The signal that the work ends for; 0 if it goes on.
int stopped_for() noexcept;

// Throws Stopped if the work is to end.
void check_stopped();

}  // namespace nola::files
