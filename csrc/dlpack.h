// The part of the DLPack ABI (version 1, https://dmlc.github.io/dlpack) that is read here: a borrowed view of
// a tensor from a library's exchange API, which torch has from 2.10 on as Tensor.__dlpack_c_exchange_api__.
// Layouts are the standard's; fields that are not read are void pointers.
#pragma once
#include <cstdint>

namespace df::dlpack {

constexpr int32_t kCpu = 1;                 // DLDeviceType
constexpr uint8_t kFloat = 2, kBfloat = 4;  // DLDataTypeCode

struct Tensor {  // DLTensor
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;  // in elements; strides null: contiguous
    uint64_t byte_offset;
};

struct ExchangeApi {  // DLPackExchangeAPI
    uint32_t major, minor;
    void *previous, *allocate, *managed_from, *managed_to;
    // Fills in a view that is valid as long as the object is; 0, or -1 with a Python error. May be null.
    int (*view)(void* object, Tensor* out);
    void* stream;
};

}  // namespace df::dlpack
