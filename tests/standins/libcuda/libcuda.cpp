// A stand-in for NVIDIA's driver, libcuda.so.1: one GPU, in this process, whose kernels are those of this library run on the CPU.
//
// It is there for the real cuda-python: what that makes of our arguments arrives here as it would at the driver. Work is queued and
// done when somebody waits for it, not before. Device memory cannot be touched but by that work: it is protected meanwhile, so that
// a host that reads it ends the process. What is wrong and would go unnoticed on a GPU ends the process with a line that says so.
//
// With -DWITHOUT_WORK kernels compute nothing, four tokens of every row are committed in each step, and memory is not protected: what
// is left is the host's part of a step, for benchmarks/step_on_host.py.
#include "shim.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "decision.cu"
#include "sweep.cu"
#include "tree.cu"

template <class Phase>
void each(Phase phase) {
    for (int i = 0; i < int(blockDim.x); ++i) phase(i);
}

enum Result {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
    CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
};  // numbers of CUresult

static const std::map<int, const char*> NAMES = {
    {0, "CUDA_SUCCESS"}, {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {3, "CUDA_ERROR_NOT_INITIALIZED"},
    {101, "CUDA_ERROR_INVALID_DEVICE"}, {200, "CUDA_ERROR_INVALID_IMAGE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {400, "CUDA_ERROR_INVALID_HANDLE"}, {500, "CUDA_ERROR_NOT_FOUND"},
    {600, "CUDA_ERROR_NOT_READY"}, {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
};

[[noreturn]] static void broken(const std::string& rule) {
    fprintf(stderr, "the stand-in for libcuda: %s\n", rule.c_str());
    _exit(86);
}

// The GPU: compute capability 9.0, 132 multiprocessors, 64 GiB.

using Work = std::function<void()>;

struct Allocation {
    size_t size;  // as asked
    size_t pages; // in bytes
    bool pinned;
};

struct Stream {
    std::vector<Work> queue;
    bool capturing = false;
    std::vector<Work> captured;
};

struct Graph {
    std::vector<Work> works;
};

struct Event {
    Stream* stream = nullptr;
    long reached = -1;
};

struct Module {
    std::string image;
};

struct Function {
    std::string name;
};

static std::recursive_mutex guard;
static bool started = false;
static int context_;  // its address is the primary context
static thread_local std::vector<void*> contexts;
static std::map<uint64_t, Allocation> memory;
static Stream legacy;
static std::map<Stream*, int> streams;
static std::map<Graph*, int> graphs;
static std::map<Event*, int> events;
static std::map<Module*, int> modules;
static std::map<Function*, int> functions;
static long ticks = 0;
static long launches = 0;

#define ENTER() std::lock_guard<std::recursive_mutex> held(guard); if (!started) return NOT_INITIALIZED
#define ENTER_CONTEXT() ENTER(); if (contexts.empty() || contexts.back() == nullptr) return INVALID_CONTEXT

static bool find(uint64_t address, size_t size, bool pinned) {
    auto found = memory.upper_bound(address);
    if (found == memory.begin()) return false;
    --found;
    return found->second.pinned == pinned && address + size <= found->first + found->second.size;
}

static void protect([[maybe_unused]] int how) {
#ifndef WITHOUT_WORK
    for (auto& [address, one] : memory) {
        if (!one.pinned && mprotect(reinterpret_cast<void*>(address), one.pages, how) != 0) broken("mprotect failed");
    }
#endif
}

static void finish(Stream* stream) {
    std::vector<Work> queue;
    queue.swap(stream->queue);
    if (queue.empty()) return;
    protect(PROT_READ | PROT_WRITE);
    for (auto& work : queue) work();
    protect(PROT_NONE);
}

static void finish_all() {
    finish(&legacy);
    for (auto& [stream, _] : streams) finish(stream);
}

static Stream* stream_of(void* handle) {
    if (handle == nullptr) return &legacy;
    auto* stream = static_cast<Stream*>(handle);
    if (!streams.count(stream)) broken("a stream is used that does not exist");
    return stream;
}

static bool any_capture() {
    for (auto& [stream, _] : streams) if (stream->capturing) return true;
    return false;
}

static int queue(Stream* stream, Work work) {
    if (stream->capturing) stream->captured.push_back(std::move(work));
    else stream->queue.push_back(std::move(work));
    return SUCCESS;
}

// Starting, devices, contexts.

static int Init(unsigned flags) { started = true; return flags ? INVALID_VALUE : SUCCESS; }
static int DriverGetVersion(int* version) { *version = 13000; return SUCCESS; }
static int GetErrorName(int code, const char** name) {
    if (!NAMES.count(code)) return INVALID_VALUE;
    *name = NAMES.at(code);
    return SUCCESS;
}
static int GetErrorString(int code, const char** text) {
    if (!NAMES.count(code)) return INVALID_VALUE;
    *text = "said the stand-in";
    return SUCCESS;
}
static int DeviceGetCount(int* count) { ENTER(); *count = 1; return SUCCESS; }
static int DeviceGet(int* device, int index) { ENTER(); *device = index; return index ? INVALID_DEVICE : SUCCESS; }
static int DeviceGetName(char* name, int size, int device) {
    ENTER();
    snprintf(name, size, "stand-in for a GPU");
    return device ? INVALID_DEVICE : SUCCESS;
}
static int DeviceGetAttribute(int* value, int attribute, int device) {
    ENTER();
    if (attribute == 75) *value = 9;
    else if (attribute == 76) *value = 0;
    else if (attribute == 16) *value = 132;
    else return INVALID_VALUE;
    return device ? INVALID_DEVICE : SUCCESS;
}
static int PrimaryRetain(void** context, int device) { ENTER(); *context = &context_; return device ? INVALID_DEVICE : SUCCESS; }
static int SetCurrent(void* context) {
    ENTER();
    if (context && context != &context_) return INVALID_CONTEXT;
    if (contexts.empty()) contexts.push_back(context);
    else contexts.back() = context;
    return SUCCESS;
}
static int PushCurrent(void* context) { ENTER(); contexts.push_back(context); return context == &context_ ? SUCCESS : INVALID_CONTEXT; }
static int PopCurrent(void** context) {
    ENTER_CONTEXT();
    *context = contexts.back();
    contexts.pop_back();
    return SUCCESS;
}
static int ContextGetDevice(int* device) { ENTER_CONTEXT(); *device = 0; return SUCCESS; }

// Memory.

static const size_t TOTAL = size_t(64) << 30;

static int MemGetInfo(size_t* free, size_t* total) {
    ENTER_CONTEXT();
    *free = *total = TOTAL;
    for (auto& [_, one] : memory) *free -= one.pinned ? 0 : one.size;
    return SUCCESS;
}

static int allocate(uint64_t* address, size_t size, bool pinned) {
    ENTER_CONTEXT();
    if (any_capture()) return CAPTURE_UNSUPPORTED;
    if (size == 0) return INVALID_VALUE;
    if (size > TOTAL) return OUT_OF_MEMORY;
    const size_t page = sysconf(_SC_PAGESIZE), pages = (size + page - 1) / page * page;
    void* found = mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return OUT_OF_MEMORY;
    if (size < (1u << 22)) memset(found, 0xab, pages);
#ifndef WITHOUT_WORK
    mprotect(static_cast<char*>(found) + pages, page, PROT_NONE);  // what runs beyond it
    if (!pinned) mprotect(found, pages, PROT_NONE);
#endif
    *address = uint64_t(found);
    memory[*address] = {size, pages, pinned};
    return SUCCESS;
}

static int release(uint64_t address, bool pinned) {
    ENTER_CONTEXT();
    if (any_capture()) return CAPTURE_UNSUPPORTED;
    auto found = memory.find(address);
    if (found == memory.end() || found->second.pinned != pinned) return INVALID_VALUE;
    finish_all();
    munmap(reinterpret_cast<void*>(address), found->second.pages + sysconf(_SC_PAGESIZE));
    memory.erase(found);
    return SUCCESS;
}

static int MemAlloc(uint64_t* address, size_t size) { return allocate(address, size, false); }
static int MemAllocHost(void** address, size_t size) { return allocate(reinterpret_cast<uint64_t*>(address), size, true); }
static int MemFree(uint64_t address) { return release(address, false); }
static int MemFreeHost(void* address) { return release(uint64_t(address), true); }

static int MemcpyHtoD(uint64_t to, const void* from, size_t size, void* handle) {
    ENTER_CONTEXT();
    Stream* stream = stream_of(handle);
    if (!find(to, size, false)) return INVALID_VALUE;
    if (find(uint64_t(from), size, true)) {
        return queue(stream, [=] { memcpy(reinterpret_cast<void*>(to), from, size); });
    }
    if (stream->capturing) return CAPTURE_UNSUPPORTED;
    std::string staged(static_cast<const char*>(from), size);  // pageable memory is read before the call returns
    return queue(stream, [=] { memcpy(reinterpret_cast<void*>(to), staged.data(), size); });
}

static int MemcpyDtoH(void* to, uint64_t from, size_t size, void* handle) {
    ENTER_CONTEXT();
    Stream* stream = stream_of(handle);
    if (!find(from, size, false)) return INVALID_VALUE;
    const bool pinned = find(uint64_t(to), size, true);
    if (stream->capturing && !pinned) return CAPTURE_UNSUPPORTED;
    if (pinned && !stream->capturing) memset(to, 0xff, size);
    return queue(stream, [=] { memcpy(to, reinterpret_cast<void*>(from), size); });
}

static int MemcpyDtoD(uint64_t to, uint64_t from, size_t size, void* handle) {
    ENTER_CONTEXT();
    if (!find(to, size, false) || !find(from, size, false)) return INVALID_VALUE;
    return queue(stream_of(handle), [=] { memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size); });
}

static int MemsetD8(uint64_t to, unsigned char value, size_t size, void* handle) {
    ENTER_CONTEXT();
    if (!find(to, size, false)) return INVALID_VALUE;
    return queue(stream_of(handle), [=] { memset(reinterpret_cast<void*>(to), value, size); });
}

// Streams, graphs, events.

static int StreamCreate(void** handle, unsigned flags) {
    ENTER_CONTEXT();
    if (flags != 1) broken("a stream was asked that waits for the default stream");
    auto* stream = new Stream;
    streams[stream] = 1;
    *handle = stream;
    return SUCCESS;
}
static int StreamDestroy(void* handle) {
    ENTER_CONTEXT();
    Stream* stream = stream_of(handle);
    finish(stream);
    streams.erase(stream);
    delete stream;
    return SUCCESS;
}
static int StreamSynchronize(void* handle) {
    ENTER_CONTEXT();
    Stream* stream = stream_of(handle);
    if (stream->capturing) return CAPTURE_UNSUPPORTED;
    finish(stream);
    return SUCCESS;
}
static int StreamWaitEvent(void* handle, void* event, unsigned flags) {
    ENTER_CONTEXT();
    auto* awaited = static_cast<Event*>(event);
    if (!events.count(awaited) || flags) return INVALID_HANDLE;
    Stream* source = awaited->stream;
    return source ? queue(stream_of(handle), [=] {
        std::vector<Work> before;
        before.swap(source->queue);
        for (auto& work : before) work();
    }) : SUCCESS;
}
static int BeginCapture(void* handle, int mode) {
    ENTER_CONTEXT();
    Stream* stream = stream_of(handle);
    if (stream == &legacy || stream->capturing || mode < 0 || mode > 2) return CAPTURE_UNSUPPORTED;
    stream->capturing = true;
    stream->captured.clear();
    return SUCCESS;
}
static int EndCapture(void* handle, void** graph) {
    ENTER_CONTEXT();
    Stream* stream = stream_of(handle);
    if (!stream->capturing) return CAPTURE_INVALIDATED;
    stream->capturing = false;
    auto* found = new Graph{std::move(stream->captured)};
    graphs[found] = 1;
    *graph = found;
    return SUCCESS;
}
static int GraphInstantiate(void** executable, void* graph, unsigned long long flags) {
    ENTER_CONTEXT();
    if (!graphs.count(static_cast<Graph*>(graph)) || flags) return INVALID_VALUE;
    auto* made = new Graph{static_cast<Graph*>(graph)->works};
    graphs[made] = 2;
    *executable = made;
    return SUCCESS;
}
static int GraphLaunch(void* executable, void* handle) {
    ENTER_CONTEXT();
    auto found = graphs.find(static_cast<Graph*>(executable));
    if (found == graphs.end() || found->second != 2) return INVALID_HANDLE;
    for (auto& work : found->first->works) queue(stream_of(handle), work);
    return SUCCESS;
}
static int destroy_graph(void* graph, int kind) {
    ENTER_CONTEXT();
    auto found = graphs.find(static_cast<Graph*>(graph));
    if (found == graphs.end() || found->second != kind) return INVALID_HANDLE;
    delete found->first;
    graphs.erase(found);
    return SUCCESS;
}
static int GraphDestroy(void* graph) { return destroy_graph(graph, 1); }
static int GraphExecDestroy(void* graph) { return destroy_graph(graph, 2); }

static int EventCreate(void** event, unsigned) {
    ENTER_CONTEXT();
    auto* made = new Event;
    events[made] = 1;
    *event = made;
    return SUCCESS;
}
static int EventDestroy(void* handle) {
    ENTER_CONTEXT();
    return events.erase(static_cast<Event*>(handle)) ? SUCCESS : INVALID_HANDLE;  // queued work may still name it
}
static int EventRecord(void* handle, void* stream) {
    ENTER_CONTEXT();
    auto* event = static_cast<Event*>(handle);
    if (!events.count(event)) return INVALID_HANDLE;
    event->stream = stream_of(stream);
    return queue(event->stream, [=] { event->reached = ++ticks; });
}
static int EventSynchronize(void* handle) {
    ENTER_CONTEXT();
    auto* event = static_cast<Event*>(handle);
    if (!events.count(event)) return INVALID_HANDLE;
    if (event->stream) finish(event->stream);
    return SUCCESS;
}
static int EventElapsedTime(float* milliseconds, void* first, void* last) {
    ENTER_CONTEXT();
    const long a = static_cast<Event*>(first)->reached, b = static_cast<Event*>(last)->reached;
    if (a < 0 || b < 0) return NOT_READY;
    *milliseconds = float(b - a);  // a clock that counts events
    return SUCCESS;
}

// Kernels. The image must be one for this GPU that has them; what runs is their source, compiled as C++.

static int ModuleLoadData(void** module, const void* image) {
    ENTER_CONTEXT();
    const auto* bytes = static_cast<const unsigned char*>(image);
    uint16_t machine;
    memcpy(&machine, bytes + 18, 2);
    if (memcmp(bytes, "\x7f" "ELF", 4) || machine != 190) return INVALID_IMAGE;
    uint32_t flags;
    memcpy(&flags, bytes + 48, 4);
    if ((flags & 0xff) != 90 && (flags >> 8 & 0xff) != 90) return NO_BINARY_FOR_GPU;
    uint64_t sections;
    uint16_t entry_size, count;
    memcpy(&sections, bytes + 40, 8);
    memcpy(&entry_size, bytes + 58, 2);
    memcpy(&count, bytes + 60, 2);
    const size_t end = sections + size_t(entry_size) * count;  // the section headers are last
    auto* made = new Module{std::string(static_cast<const char*>(image), end)};
    modules[made] = 1;
    *module = made;
    return SUCCESS;
}

static int ModuleGetFunction(void** function, void* module, const char* name) {
    ENTER_CONTEXT();
    auto* loaded = static_cast<Module*>(module);
    if (!modules.count(loaded)) return INVALID_HANDLE;
    const std::string section = std::string(".text.") + name;
    if (loaded->image.find(section.c_str(), 0, section.size() + 1) == std::string::npos) return NOT_FOUND;
    auto* made = new Function{name};
    functions[made] = 1;
    *function = made;
    return SUCCESS;
}

#ifdef WITHOUT_WORK
static void pretend(const Draws&, unsigned) {}
static void pretend(const WindowDraws&, unsigned) {}
static void pretend(const Decision& decision, unsigned rows) {
    for (unsigned b = 0; b < rows; ++b) {
        const long long most = decision.rows[b].recycled + decision.rows[b].fresh + 1;
        decision.committed[b] = most < 4 ? most : 4;
    }
    memset(decision.tokens, 0, 8 * rows * decision.width);
    memset(decision.highest_logits, 0, 4 * rows * decision.width);
}
#endif

template <class Parameters>
static Work launched(void (*kernel)(const Parameters), const void* argument, Index grid, unsigned block) {
    Parameters parameters;
    memcpy(&parameters, argument, sizeof parameters);  // arguments are copied by the launch
    return [=] {
        gridDim = grid;
        blockDim = {block, 1, 1};
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
#ifdef WITHOUT_WORK
            (void)kernel;
#else
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) kernel(parameters);
#endif
        }
#ifdef WITHOUT_WORK
        pretend(parameters, grid.y);
#endif
        ++launches;
    };
}

static int LaunchKernel(
    void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
    unsigned shared, void* handle, void** parameters, void** extra
) {
    ENTER_CONTEXT();
    auto* found = static_cast<Function*>(function);
    if (!functions.count(found)) return INVALID_HANDLE;
    const std::string name = found->name;
    const bool shares = name == "measure" || name == "target_laws";
    if (!grid_x || !grid_y || grid_y > 65535 || grid_z != 1) return INVALID_VALUE;
    if (block_x != (shares ? PART_THREADS : THREADS) || block_y != 1 || block_z != 1 || shared || extra || !parameters) {
        broken(name + " is launched with " + std::to_string(block_x) + " threads, or with what no kernel here takes");
    }
    const Index grid{grid_x, grid_y, grid_z};
    const void* argument = parameters[0];
    Work work;
    if (name == "measure") work = launched(measure, argument, grid, block_x);
    else if (name == "settle") work = launched(settle, argument, grid, block_x);
    else if (name == "target_laws") work = launched(target_laws, argument, grid, block_x);
    else if (name == "decide") work = launched(decide, argument, grid, block_x);
    else if (name == "sweep") work = launched(sweep, argument, grid, block_x);
    else if (name == "walk") work = launched(walk, argument, grid, block_x);
    else if (name == "rank") work = launched(rank, argument, grid, block_x);
    else if (name == "noise") work = launched(noise, argument, grid, block_x);
    else if (name == "window_noise") work = launched(window_noise, argument, grid, block_x);
    else return NOT_FOUND;
    return queue(stream_of(handle), work);
}

// What a test asks, by ctypes.

extern "C" long stand_in_launches() { return launches; }
extern "C" long stand_in_live(int pinned) {
    long count = 0;
    for (auto& [_, one] : memory) count += one.pinned == bool(pinned);
    return count;
}
extern "C" long stand_in_graphs() { return long(graphs.size()); }

static const std::map<std::string, void*> FUNCTIONS = {
#define NAMED(name, function) {name, reinterpret_cast<void*>(function)}
    NAMED("cuInit", Init), NAMED("cuDriverGetVersion", DriverGetVersion), NAMED("cuGetErrorName", GetErrorName),
    NAMED("cuGetErrorString", GetErrorString), NAMED("cuDeviceGetCount", DeviceGetCount), NAMED("cuDeviceGet", DeviceGet),
    NAMED("cuDeviceGetName", DeviceGetName), NAMED("cuDeviceGetAttribute", DeviceGetAttribute),
    NAMED("cuDevicePrimaryCtxRetain", PrimaryRetain), NAMED("cuCtxSetCurrent", SetCurrent),
    NAMED("cuCtxPushCurrent", PushCurrent), NAMED("cuCtxPopCurrent", PopCurrent), NAMED("cuCtxGetDevice", ContextGetDevice),
    NAMED("cuMemGetInfo", MemGetInfo), NAMED("cuMemAlloc", MemAlloc), NAMED("cuMemAllocHost", MemAllocHost),
    NAMED("cuMemFree", MemFree), NAMED("cuMemFreeHost", MemFreeHost), NAMED("cuMemcpyHtoDAsync", MemcpyHtoD),
    NAMED("cuMemcpyDtoHAsync", MemcpyDtoH), NAMED("cuMemcpyDtoDAsync", MemcpyDtoD), NAMED("cuMemsetD8Async", MemsetD8),
    NAMED("cuStreamCreate", StreamCreate), NAMED("cuStreamDestroy", StreamDestroy),
    NAMED("cuStreamSynchronize", StreamSynchronize), NAMED("cuStreamWaitEvent", StreamWaitEvent),
    NAMED("cuStreamBeginCapture", BeginCapture), NAMED("cuStreamEndCapture", EndCapture),
    NAMED("cuGraphInstantiateWithFlags", GraphInstantiate), NAMED("cuGraphLaunch", GraphLaunch),
    NAMED("cuGraphDestroy", GraphDestroy), NAMED("cuGraphExecDestroy", GraphExecDestroy), NAMED("cuEventCreate", EventCreate),
    NAMED("cuEventDestroy", EventDestroy), NAMED("cuEventRecord", EventRecord),
    NAMED("cuEventSynchronize", EventSynchronize), NAMED("cuEventElapsedTime", EventElapsedTime),
    NAMED("cuModuleLoadData", ModuleLoadData), NAMED("cuModuleGetFunction", ModuleGetFunction),
    NAMED("cuLaunchKernel", LaunchKernel),
#undef NAMED
};

extern "C" int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
    auto found = FUNCTIONS.find(name);
    *function = found == FUNCTIONS.end() ? nullptr : found->second;
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
