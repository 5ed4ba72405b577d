#include "io/gpu.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <atomic>
#include <mutex>
#include <vector>

namespace hicache {
namespace {

constexpr const char* kLibraryName = "libcuda.so.1";

// Of cuda.h (CUDA 13.0; unchanged since they were introduced). Types: CUresult is an int, CUdevice
// an int, CUdeviceptr a uint64_t, CUcontext, CUstream and CUevent are pointers.
constexpr int kSuccess = 0;              // CUDA_SUCCESS
constexpr int kNotInitialized = 3;       // CUDA_ERROR_NOT_INITIALIZED
constexpr int kDeinitialized = 4;        // CUDA_ERROR_DEINITIALIZED
constexpr int kInvalidValue = 1;         // CUDA_ERROR_INVALID_VALUE
constexpr int kInvalidContext = 201;     // CUDA_ERROR_INVALID_CONTEXT
constexpr int kNotSupported = 801;       // CUDA_ERROR_NOT_SUPPORTED
constexpr int kMemoryType = 2;           // CU_POINTER_ATTRIBUTE_MEMORY_TYPE
constexpr int kIsManaged = 8;            // CU_POINTER_ATTRIBUTE_IS_MANAGED
constexpr int kDeviceOrdinal = 9;        // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
constexpr unsigned kTypeHost = 1;        // CU_MEMORYTYPE_HOST
constexpr unsigned kTypeDevice = 2;      // CU_MEMORYTYPE_DEVICE
constexpr unsigned kNonBlocking = 1;     // CU_STREAM_NON_BLOCKING
constexpr unsigned kBlockingSync = 1;    // CU_EVENT_BLOCKING_SYNC
constexpr unsigned kNoTiming = 2;        // CU_EVENT_DISABLE_TIMING
constexpr unsigned kPortable = 1;        // CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTREGISTER_PORTABLE
constexpr int kRangeDmabufFd = 1;        // CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD
constexpr int kSourceInStreamOrder = 1;  // CU_MEMCPY_SRC_ACCESS_ORDER_STREAM

/// CUmemcpyAttributes.
struct CopyAttributes {
  int source_access_order = kSourceInStreamOrder;
  int source_location[2] = {0, 0};
  int target_location[2] = {0, 0};
  unsigned flags = 0;
};
static_assert(sizeof(CopyAttributes) == 24);

/// Functions that the library exports. Where cuda.h gives a name another version, that one.
struct Functions {
  int (*get_error_name)(int, const char**);
  int (*pointer_get_attributes)(unsigned, int*, void**, uint64_t);
  int (*context_retain)(GpuContext*, int);
  int (*context_release)(int);
  int (*context_push)(GpuContext);
  int (*context_pop)(GpuContext*);
  int (*stream_create)(GpuStream*, unsigned);
  int (*stream_destroy)(GpuStream);
  int (*stream_synchronize)(GpuStream);
  int (*event_create)(GpuEvent*, unsigned);
  int (*event_destroy)(GpuEvent);
  int (*event_record)(GpuEvent, GpuStream);
  int (*event_synchronize)(GpuEvent);
  int (*stream_wait_event)(GpuStream, GpuEvent, unsigned);
  int (*memcpy_async)(uint64_t, uint64_t, size_t, GpuStream);
  int (*host_alloc)(void**, size_t, unsigned);
  int (*host_free)(void*);
  int (*host_register)(void*, size_t, unsigned);
  int (*host_unregister)(void*);
  /// Of CUDA 11.7 on; nullptr in older drivers.
  int (*get_range_handle)(void*, uint64_t, size_t, int, unsigned long long);
  /// Of CUDA 13 on; nullptr in older drivers.
  int (*memcpy_batch_async)(uint64_t*, uint64_t*, size_t*, size_t, CopyAttributes*, size_t*, size_t,
                            GpuStream);
};

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

bool find_functions(void* library, Functions& functions) {
  find(library, "cuMemcpyBatchAsync_v2", functions.memcpy_batch_async);
  find(library, "cuMemGetHandleForAddressRange", functions.get_range_handle);
  // A device's number is its CUdevice: cuDeviceGet() has never given another.
  return find(library, "cuGetErrorName", functions.get_error_name) &&
         find(library, "cuPointerGetAttributes", functions.pointer_get_attributes) &&
         find(library, "cuDevicePrimaryCtxRetain", functions.context_retain) &&
         find(library, "cuDevicePrimaryCtxRelease_v2", functions.context_release) &&
         find(library, "cuCtxPushCurrent_v2", functions.context_push) &&
         find(library, "cuCtxPopCurrent_v2", functions.context_pop) &&
         find(library, "cuStreamCreate", functions.stream_create) &&
         find(library, "cuStreamDestroy_v2", functions.stream_destroy) &&
         find(library, "cuStreamSynchronize", functions.stream_synchronize) &&
         find(library, "cuEventCreate", functions.event_create) &&
         find(library, "cuEventDestroy_v2", functions.event_destroy) &&
         find(library, "cuEventRecord", functions.event_record) &&
         find(library, "cuEventSynchronize", functions.event_synchronize) &&
         find(library, "cuStreamWaitEvent", functions.stream_wait_event) &&
         find(library, "cuMemcpyAsync", functions.memcpy_async) &&
         find(library, "cuMemHostAlloc", functions.host_alloc) &&
         find(library, "cuMemFreeHost", functions.host_free) &&
         find(library, "cuMemHostRegister_v2", functions.host_register) &&
         find(library, "cuMemHostUnregister", functions.host_unregister);
}

/// Whether the driver was seen initialised; what a fork then makes of it.
std::atomic<bool> is_in_use{false};
std::atomic<bool> is_forked{false};

class Library final : public GpuDriver {
 public:
  explicit Library(const Functions& functions) : calls_(functions) {}

  int pointer_facts(uint64_t address, PointerFacts* facts) const override {
    *facts = PointerFacts{};
    unsigned type = 0;
    int is_managed = 0;
    int device = -1;
    int wanted[] = {kMemoryType, kIsManaged, kDeviceOrdinal};
    void* found[] = {&type, &is_managed, &device};
    const int error = calls_.pointer_get_attributes(3, wanted, found, address);
    // Before cuInit(), in a forked child and while the process ends no memory is a GPU's.
    if (error == kNotInitialized || error == kDeinitialized) return kSuccess;
    is_in_use.store(true, std::memory_order_relaxed);
    if (error == kInvalidValue || error == kInvalidContext) return kSuccess;
    if (error != kSuccess) return error;
    facts->device = device;
    if (is_managed != 0) {
      facts->kind = PointerFacts::Kind::kManaged;
    } else if (type == kTypeDevice) {
      facts->kind = PointerFacts::Kind::kDevice;
    } else if (type == kTypeHost) {
      facts->kind = PointerFacts::Kind::kPinned;
    }
    return kSuccess;
  }

  int context_retain(int device, GpuContext* context) const override {
    return calls_.context_retain(context, device);
  }
  int context_release(int device) const override { return calls_.context_release(device); }
  int context_push(GpuContext context) const override { return calls_.context_push(context); }
  int context_pop() const override {
    GpuContext popped;
    return calls_.context_pop(&popped);
  }

  int stream_create(GpuStream* stream) const override {
    return calls_.stream_create(stream, kNonBlocking);
  }
  int stream_destroy(GpuStream stream) const override { return calls_.stream_destroy(stream); }
  int stream_wait(GpuStream stream) const override { return calls_.stream_synchronize(stream); }
  int event_create(GpuEvent* event) const override {
    return calls_.event_create(event, kBlockingSync | kNoTiming);
  }
  int event_destroy(GpuEvent event) const override { return calls_.event_destroy(event); }
  int event_record(GpuEvent event, GpuStream stream) const override {
    return calls_.event_record(event, stream);
  }
  int event_wait(GpuEvent event) const override { return calls_.event_synchronize(event); }
  int stream_wait_event(GpuStream stream, GpuEvent event) const override {
    return calls_.stream_wait_event(stream, event, 0);
  }
  int copy_async(uint64_t target, uint64_t source, size_t size, GpuStream stream) const override {
    return calls_.memcpy_async(target, source, size, stream);
  }
  int copy_all_async(std::span<const GpuCopy> copies, GpuStream stream) const override {
    if (copies.empty()) return kSuccess;
    if (calls_.memcpy_batch_async == nullptr) {
      for (const GpuCopy& copy : copies) {
        const int error = copy_async(copy.target, copy.source, copy.size, stream);
        if (error != kSuccess) return error;
      }
      return kSuccess;
    }
    std::vector<uint64_t> targets;
    std::vector<uint64_t> sources;
    std::vector<size_t> sizes;
    for (const GpuCopy& copy : copies) {
      targets.push_back(copy.target);
      sources.push_back(copy.source);
      sizes.push_back(copy.size);
    }
    CopyAttributes attributes;
    size_t first = 0;  // Whose attributes they are, and of those after it.
    return calls_.memcpy_batch_async(targets.data(), sources.data(), sizes.data(), copies.size(),
                                     &attributes, &first, 1, stream);
  }
  int host_alloc(void** address, size_t size) const override {
    return calls_.host_alloc(address, size, kPortable);
  }
  int host_free(void* address) const override { return calls_.host_free(address); }
  int host_register(void* address, size_t size) const override {
    return calls_.host_register(address, size, kPortable);
  }
  int host_unregister(void* address) const override { return calls_.host_unregister(address); }
  int export_dmabuf(uint64_t address, size_t size, int* dmabuf) const override {
    if (calls_.get_range_handle == nullptr) return kNotSupported;
    return calls_.get_range_handle(dmabuf, address, size, kRangeDmabufFd, 0);
  }

  std::string error_name(int error) const override {
    const char* name = nullptr;
    if (calls_.get_error_name(error, &name) != kSuccess || name == nullptr) {
      return "CUDA error " + std::to_string(error);
    }
    return name;
  }

 private:
  const Functions calls_;
};

/// How many libraries this process has ever loaded.
unsigned long long load_count() {
  unsigned long long count = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void* result) {
        *static_cast<unsigned long long*>(result) = library->dlpi_adds;
        return 1;  // The first tells it.
      },
      &count);
  return count;
}

const GpuDriver* load_library() {
  void* library = dlopen(kLibraryName, RTLD_NOW | RTLD_NOLOAD);
  Functions functions{};
  // One that lacks any of this is older than CUDA 11, and older than any GPU that is served here.
  if (library == nullptr || !find_functions(library, functions)) return nullptr;
  static const Library driver(functions);
  pthread_atfork(nullptr, nullptr, [] {
    if (is_in_use.load(std::memory_order_relaxed)) is_forked.store(true, std::memory_order_relaxed);
  });
  return &driver;
}

std::atomic<const GpuDriver*> replaced{nullptr};

}  // namespace

const GpuDriver* GpuDriver::of_process() {
  static std::atomic<const GpuDriver*> found{nullptr};
  static std::atomic<unsigned long long> looked_at{0};
  static std::mutex mutex;
  if (const GpuDriver* driver = replaced.load(std::memory_order_acquire)) return driver;
  if (is_forked.load(std::memory_order_relaxed)) return nullptr;
  if (const GpuDriver* driver = found.load(std::memory_order_acquire)) return driver;
  const unsigned long long count = load_count();
  if (looked_at.load(std::memory_order_relaxed) == count) return nullptr;
  const std::lock_guard lock(mutex);
  if (found.load() == nullptr) found.store(load_library(), std::memory_order_release);
  looked_at.store(count, std::memory_order_relaxed);
  return found.load();
}

void GpuDriver::stand_in(const GpuDriver* driver) {
  replaced.store(driver, std::memory_order_release);
}

}  // namespace hicache
