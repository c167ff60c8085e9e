/* A double of the driver's library for what ctypes passes: host memory, one context, one stream. */
#include <stdlib.h>
#include <string.h>

#ifndef CUDA_VERSION /* else NVIDIA's cuda.h was included before, which checks the declarations */
typedef int CUresult, CUdevice, CUdevice_attribute, CUstreamCaptureMode;
typedef unsigned long long CUdeviceptr;
typedef void *CUcontext, *CUstream, *CUgraph, *CUgraphExec;
#define cuMemAlloc cuMemAlloc_v2
#define cuMemFree cuMemFree_v2
#define cuMemGetInfo cuMemGetInfo_v2
#define cuMemcpyHtoDAsync cuMemcpyHtoDAsync_v2
#define cuMemcpyDtoHAsync cuMemcpyDtoHAsync_v2
#define cuStreamDestroy cuStreamDestroy_v2
#define cuStreamBeginCapture cuStreamBeginCapture_v2
#endif

#define CONTEXT ((void *)0x7f00000000c0)
#define STREAM ((void *)0x7f0123456789)
#define GRAPH ((void *)0x7f0000000001)
#define MADE ((void *)0x7f0000000002)

static size_t taken;
static _Thread_local void *current;

static CUresult wrong(int is) { return current != CONTEXT ? 201 : is; }

CUresult cuInit(unsigned int flags) { return flags; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = CONTEXT;
    return device;
}
CUresult cuCtxSetCurrent(CUcontext context) { current = context; return 0; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1;
    return device;
}
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    strncpy(name, "RTX (driver double in C)", (size_t)size);
    return device;
}
CUresult cuMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = (size_t)1 << 40; /* more than 32 bits hold */
    *free_bytes = *total - taken;
    return wrong(0);
}
CUresult cuDriverGetVersion(int *version) { *version = 13010; return 0; }
CUresult cuMemAlloc(CUdeviceptr *pointer, size_t size) {
    if (size > ((size_t)1 << 33)) return 2;
    taken += size;
    *pointer = (CUdeviceptr)malloc(size);
    return wrong(0);
}
CUresult cuMemFree(CUdeviceptr pointer) { free((void *)pointer); return wrong(0); }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    memcpy((void *)to, from, size);
    return wrong((void *)stream != STREAM);
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    memcpy(to, (const void *)from, size);
    return wrong((void *)stream != STREAM);
}
CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    *stream = STREAM;
    return wrong(flags != 0);
}
CUresult cuStreamSynchronize(CUstream stream) { return wrong((void *)stream != STREAM); }
CUresult cuStreamDestroy(CUstream stream) { return wrong((void *)stream != STREAM); }
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    return wrong((void *)stream != STREAM || mode != 1);
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    *graph = GRAPH;
    return wrong((void *)stream != STREAM);
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *made, CUgraph graph, unsigned long long flags) {
    *made = MADE;
    return wrong((void *)graph != GRAPH || flags != 0);
}
CUresult cuGraphDestroy(CUgraph graph) { return wrong((void *)graph != GRAPH); }
CUresult cuGraphLaunch(CUgraphExec made, CUstream stream) {
    return wrong((void *)made != MADE || (void *)stream != STREAM);
}
CUresult cuGraphExecDestroy(CUgraphExec made) { return wrong((void *)made != MADE); }
CUresult cuGetErrorString(CUresult status, const char **text) {
    *text = status == 2 ? "out of memory" : "invalid";
    return 0;
}
