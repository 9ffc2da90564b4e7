// All host sides as one unit of compilation: what they include is read once, which halves their time to compile.
#include "host/contract.cpp"
#include "host/library.cpp"
#include "masked_conv/host.cpp"
#include "nearest/host.cpp"
#include "residual/host.cpp"
#include "residual/host_projected.cpp"
#include "sampler/host.cpp"
