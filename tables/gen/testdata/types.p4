// What the generator takes from P4 source, for the sample P4Info.
#define CPU_PORT 510
#ifndef CARRIER_PROTOCOL
#define CARRIER_PROTOCOL 253
#endif
#define NOT_OF_THE_INTERFACE 1
const bit<16> ZONE_ANY = 0xffff;   // either zone
const bit<16> ETHERTYPE_IPV4 = 0x0800;

/* The roles;
   enum bit<8> Commented { OUT = 1 } */
enum bit<2> Role {
    EDGE = 0,
    TRUNK = 1, // other members
    ECHO = 2
}
