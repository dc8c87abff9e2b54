// api.h with C linkage.

#pragma once

#include <cstdint>

extern "C" {
#include "api.h"
}
