#include <cuda.h>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <algorithm>
#include <chrono>
#include <thread>
#include <atomic>
constexpr size_t kMiB=1<<20;
#define CHECK(x) do{CUresult r_=(x); if(r_!=CUDA_SUCCESS){printf("%s failed %d\n",#x,r_); exit(1);} }while(0)
double now(){return std::chrono::duration<double,std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();}
CUmemAllocationProp prop; CUmemAccessDesc acc; CUdeviceptr base;
struct T{std::vector<double> v; double at(double s){std::sort(v.begin(),v.end());return v.empty()?0:v[(size_t)(s*(v.size()-1))];}};
__global__ void copy_kernel(const int4* __restrict__ src,int4* __restrict__ dst,size_t n){ size_t i=blockIdx.x*(size_t)blockDim.x+threadIdx.x, s=(size_t)gridDim.x*blockDim.x; for(;i<n;i+=s) dst[i]=src[i]; }
__global__ void spin(long long c,float*m){long long s=clock64(); while(clock64()-s<c) m[threadIdx.x]+=1;}
void maps(const char*what,int n=40){ CUmemGenericAllocationHandle h; CHECK(cuMemCreate(&h,32*kMiB,&prop,0)); T a,u; for(int i=0;i<n;i++){ CHECK(cuMemMap(base,32*kMiB,0,h,0)); double s=now(); CHECK(cuMemSetAccess(base,32*kMiB,&acc,1)); a.v.push_back(now()-s); s=now(); CHECK(cuMemUnmap(base,32*kMiB)); u.v.push_back(now()-s);} CHECK(cuMemRelease(h)); printf("%-46s access p10 %.0f p50 %.0f p90 %.0f  unmap %.0f\n",what,a.at(.1),a.at(.5),a.at(.9),u.at(.5)); }
int main(){ setvbuf(stdout,nullptr,_IOLBF,0); CHECK(cuInit(0)); CUdevice d; CUcontext c; CHECK(cuDeviceGet(&d,0)); CHECK(cuDevicePrimaryCtxRetain(&c,d)); CHECK(cuCtxSetCurrent(c));
 int engines=0; cuDeviceGetAttribute(&engines,CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT,d); int lo,hi; CHECK(cuCtxGetStreamPriorityRange(&lo,&hi)); printf("engines %d priorities %d..%d\n",engines,lo,hi);
 prop.type=CU_MEM_ALLOCATION_TYPE_PINNED; prop.location={CU_MEM_LOCATION_TYPE_DEVICE,0}; acc.location=prop.location; acc.flags=CU_MEM_ACCESS_FLAGS_PROT_READWRITE; CHECK(cuMemAddressReserve(&base,1024*kMiB,64*kMiB,0,0));
 CUdeviceptr dev; void*host; CHECK(cuMemAlloc(&dev,256*kMiB)); CHECK(cuMemHostAlloc(&host,256*kMiB,0)); 
 const size_t P=16*kMiB; auto queue=[&](CUstream s,int n){ for(int i=0;i<n;i++) CHECK(cuMemcpyDtoHAsync((char*)host+(i%16)*P,dev+(i%16)*P,P,s)); };
 maps("idle");
 std::vector<CUstream> ss(10); for(int i=0;i<10;i++) CHECK(cuStreamCreate(&ss[i],CU_STREAM_NON_BLOCKING));
 for(int i=0;i<10;i+=3){ queue(ss[i],150); char b[64]; sprintf(b,"down, stream %d",i); maps(b); CHECK(cuStreamSynchronize(ss[i])); }
 for(int pr: {lo,hi,hi/2}){ CUstream s; CHECK(cuStreamCreateWithPriority(&s,CU_STREAM_NON_BLOCKING,pr)); queue(s,150); char b[64]; sprintf(b,"down, priority %d",pr); maps(b); CHECK(cuStreamSynchronize(s)); }
 { for(int i=0;i<150;i++) CHECK(cuMemcpyAsync((CUdeviceptr)host,dev,P,ss[0])); maps("down, cuMemcpyAsync"); CHECK(cuStreamSynchronize(ss[0])); }
 { CUDA_MEMCPY2D m{}; m.srcMemoryType=CU_MEMORYTYPE_DEVICE; m.srcDevice=dev; m.srcPitch=kMiB; m.dstMemoryType=CU_MEMORYTYPE_HOST; m.dstHost=host; m.dstPitch=kMiB; m.WidthInBytes=kMiB; m.Height=16; for(int i=0;i<150;i++) CHECK(cuMemcpy2DAsync(&m,ss[0])); maps("down, cuMemcpy2DAsync"); CHECK(cuStreamSynchronize(ss[0])); }
 // depth: a thread keeps `depth` pieces submitted
 for(size_t piece: {16*kMiB,4*kMiB}) for(int depth: {1,2,3}){ std::atomic<bool> stop{false}; std::atomic<long> bytes{0}; std::thread t([&]{ CHECK(cuCtxSetCurrent(c)); std::vector<CUevent> ev(depth); for(auto&e:ev) CHECK(cuEventCreate(&e,CU_EVENT_DISABLE_TIMING)); for(int i=0;!stop;i++){ CUevent e=ev[i%depth]; if(i>=depth) while(cuEventQuery(e)==CUDA_ERROR_NOT_READY); CHECK(cuMemcpyDtoHAsync(host,dev,piece,ss[0])); CHECK(cuEventRecord(e,ss[0])); bytes+=piece; } CHECK(cuStreamSynchronize(ss[0])); }); std::this_thread::sleep_for(std::chrono::milliseconds(20)); double s=now(); long b0=bytes; char b[64]; sprintf(b,"down, %zu MiB, %d submitted",piece/kMiB,depth); maps(b,150); printf("     at %.1f GB/s\n",(bytes-b0)/(now()-s)/1e3); stop=true; t.join(); }
 for(size_t piece: {16*kMiB,8*kMiB,4*kMiB,2*kMiB}) for(int streams: {2,3}) for(int depth: {2,3,4}){ std::atomic<bool> stop{false}; std::atomic<long> bytes{0}; std::thread t([&]{ CHECK(cuCtxSetCurrent(c)); std::vector<CUevent> ev(depth+1); for(auto&e:ev) CHECK(cuEventCreate(&e,CU_EVENT_DISABLE_TIMING)); for(long i=0;!stop;i++){ CUstream s=ss[i%streams]; if(i>=depth) while(cuEventQuery(ev[(i-depth)%(depth+1)])==CUDA_ERROR_NOT_READY); if(i>0) CHECK(cuStreamWaitEvent(s,ev[(i-1)%(depth+1)],0)); CHECK(cuMemcpyDtoHAsync(host,dev,piece,s)); CHECK(cuEventRecord(ev[i%(depth+1)],s)); bytes+=piece; } for(int k=0;k<streams;k++) CHECK(cuStreamSynchronize(ss[k])); }); std::this_thread::sleep_for(std::chrono::milliseconds(20)); double s=now(); long b0=bytes; std::this_thread::sleep_for(std::chrono::milliseconds(20)); double alone=(bytes-b0)/(now()-s)/1e3; s=now(); b0=bytes; char b[64]; sprintf(b,"chain of %d streams, %zu MiB, %d submitted",streams,piece/kMiB,depth); maps(b,150); printf("     at %.1f GB/s alone, %.1f while mapping\n",alone,(bytes-b0)/(now()-s)/1e3); stop=true; t.join(); }
}
