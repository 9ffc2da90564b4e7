// The names in contract.def, for vqfast/ops/contract.py: a line each, "enum Name value=number ..." or
// "struct Name field ...", in the order of memory.
#define VQFAST_ENUM(name) "enum " #name
#define VQFAST_VALUE(name, number) " " #name "=" #number
#define VQFAST_STRUCT(name) "struct " #name
#define VQFAST_FIELD(type, name) " " #name
#define VQFAST_END "\n"

extern "C" __attribute__((visibility("default"))) const char* vqfast_contract() {
  return
#include "shared/contract.def"
      ;
}
