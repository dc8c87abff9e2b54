// The C interface with C linkage, and the constants behind it.

#pragma once

#include <cstdint>

extern "C" {
#include "api.h"
}
