// The kernels as a program that other programs talk to through its standard input and output: allocate, release, upload,
// download, launch. "Device memory" is the heap, so that AddressSanitizer knows the bounds of every buffer.
#include "shim.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "decision.cu"
#include "sweep.cu"
#include "tree.cu"

#ifndef THREADED
template <class Phase>
void each(Phase phase) {
    const int threads = int(blockDim.x);
    for (int i = 0; i < threads; ++i) {
        // 37 shares no divisor with the number of threads, which is a power of two.
        phase(turn_order == 0 ? i : turn_order == 1 ? threads - 1 - i : (37 * i + 11) % threads);
    }
}
#endif

static void receive(void* data, size_t size) {
    if (size && fread(data, 1, size, stdin) != size) exit(0);
}

static void answer(const void* data, size_t size) {
    if (size) fwrite(data, 1, size, stdout);
    fflush(stdout);
}

static uint64_t receive_number() {
    uint64_t number;
    receive(&number, 8);
    return number;
}

template <class Parameters>
using Kernel = void (*)(const Parameters);

#ifdef THREADED
template <class Parameters>
struct Task {
    Kernel<Parameters> kernel;
    const Parameters* parameters;
    int thread;
};

template <class Parameters>
void* run_thread(void* given) {
    const auto* task = static_cast<Task<Parameters>*>(given);
    own_thread = task->thread;
    task->kernel(*task->parameters);
    return nullptr;
}
#endif

template <class Parameters>
static void run(Kernel<Parameters> kernel, const std::vector<char>& bytes, int block) {
    blockDim.x = (unsigned int)(block);
    if (bytes.size() != sizeof(Parameters)) {
        fprintf(stderr, "parameters are %zu bytes, expected %zu\n", bytes.size(), sizeof(Parameters));
        exit(3);
    }
    Parameters parameters;
    memcpy(&parameters, bytes.data(), sizeof parameters);
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
#ifdef THREADED
            pthread_barrier_init(&barrier, nullptr, block);
            std::vector<pthread_t> threads(block);
            std::vector<Task<Parameters>> tasks;
            for (int i = 0; i < block; ++i) tasks.push_back({kernel, &parameters, i});
            for (int i = 0; i < block; ++i) pthread_create(&threads[i], nullptr, run_thread<Parameters>, &tasks[i]);
            for (auto& thread : threads) pthread_join(thread, nullptr);
            pthread_barrier_destroy(&barrier);
#else
            kernel(parameters);
#endif
        }
    }
}

int main(int count, char** arguments) {
    turn_order = count > 1 ? atoi(arguments[1]) : 0;
    for (;;) {
        const uint64_t command = receive_number();
        if (command == 'a') {
            const uint64_t size = receive_number();
            void* memory = malloc(size);
            memset(memory, 0xab, size);
            answer(&memory, 8);
        } else if (command == 'r') {
            free(reinterpret_cast<void*>(receive_number()));
        } else if (command == 'u') {
            void* memory = reinterpret_cast<void*>(receive_number());
            const uint64_t size = receive_number();
            std::vector<char> bytes(size);  // read() itself would not be checked
            receive(bytes.data(), size);
            memcpy(memory, bytes.data(), size);
        } else if (command == 'd') {
            const void* memory = reinterpret_cast<void*>(receive_number());
            const uint64_t size = receive_number();
            std::vector<char> bytes(size);
            memcpy(bytes.data(), memory, size);
            answer(bytes.data(), size);
        } else if (command == 'l') {
            char name[32];
            receive(name, sizeof name);
            gridDim.x = (unsigned int)receive_number();
            gridDim.y = (unsigned int)receive_number();
            std::vector<char> bytes(receive_number());
            receive(bytes.data(), bytes.size());
            if (!strcmp(name, "measure")) run(measure, bytes, PART_THREADS);
            else if (!strcmp(name, "settle")) run(settle, bytes, THREADS);
            else if (!strcmp(name, "target_laws")) run(target_laws, bytes, PART_THREADS);
            else if (!strcmp(name, "decide")) run(decide, bytes, THREADS);
            else if (!strcmp(name, "sweep")) run(sweep, bytes, THREADS);
            else if (!strcmp(name, "walk")) run(walk, bytes, THREADS);
            else if (!strcmp(name, "rank")) run(rank, bytes, THREADS);
            else if (!strcmp(name, "noise")) run(noise, bytes, THREADS);
            else if (!strcmp(name, "window_noise")) run(window_noise, bytes, THREADS);
            else {
                fprintf(stderr, "no kernel is called %s\n", name);
                return 3;
            }
            const uint64_t done = 1;
            answer(&done, 8);
        } else {
            fprintf(stderr, "no command has the number %llu\n", (unsigned long long)command);
            return 3;
        }
    }
}
