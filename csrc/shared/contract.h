// The structs and enums of contract.def.
#pragma once

#include <cstdint>

namespace vqfast {

#define VQFAST_ENUM(name) enum class name : int64_t {
#define VQFAST_VALUE(name, number) name = number,
#define VQFAST_STRUCT(name) struct name {
#define VQFAST_FIELD(type, name) type name;
#define VQFAST_END };
#include "shared/contract.def"
#undef VQFAST_ENUM
#undef VQFAST_VALUE
#undef VQFAST_STRUCT
#undef VQFAST_FIELD
#undef VQFAST_END

}  // namespace vqfast
