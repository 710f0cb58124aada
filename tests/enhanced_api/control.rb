# A program as kernel_layout.c, in Ruby, by its foreign function interface.
#
# control.rb SERVER PORT LOCAL LOCAL-PORT REMOTE REMOTE-PORT      prints what kernel_layout prints
require "fiddle"
require "socket"

GET_SUB_IDS, CLOSE_SUB_ID, GET_SUB_TUPLE, OPEN_SUB_TUPLE, SUB_GETSOCKOPT, SUB_SETSOCKOPT = 66, 67, 68, 69, 71, 72
INT, POINTER = Fiddle::TYPE_INT, Fiddle::TYPE_VOIDP
GETSOCKOPT = Fiddle::Function.new(Fiddle::Handle::DEFAULT["getsockopt"], [INT, INT, INT, POINTER, POINTER], INT)
SETSOCKOPT = Fiddle::Function.new(Fiddle::Handle::DEFAULT["setsockopt"], [INT, INT, INT, POINTER, INT], INT)

$stdout.sync = true
server, port, local, local_port, remote, remote_port = ARGV
$socket = TCPSocket.new(server, port)
$socket.write("x")
$socket.read(1)

def get(option, buffer)
  length = [buffer.bytesize].pack("I")
  if GETSOCKOPT.call($socket.fileno, Socket::IPPROTO_TCP, option, buffer, length) < 0
    raise SystemCallError.new(option.to_s, Fiddle.last_error)
  end
  length.unpack1("I")
end

# Ids, each with whether the peer has accepted the subflow.
def list
  buffer = "\0" * 512
  length = get(GET_SUB_IDS, buffer)
  buffer.byteslice(2, length - 2).bytes.each_slice(2).map { |id, flags| [id, flags & 2 != 0] }
end

def print_ids
  ids = list.map(&:first)
  ids.each { |id| puts "Subflow id : #{id}" }
end

def pause(stage)
  puts "-- #{stage}"
  $stdin.gets
end

print_ids
before = list.map(&:first)
ends = [[local, local_port], [remote, remote_port]].map { |host, number| Socket.sockaddr_in(number, host) }
get(OPEN_SUB_TUPLE, "\0" + ends.join)
opened = nil
until opened
  opened = list.find { |id, accepted| accepted && !before.include?(id) }&.first
end
puts "opened : #{opened}"
print_ids.each do |id|
  tuple = [id].pack("C") + "\0" * 99
  length = get(GET_SUB_TUPLE, tuple)
  puts "Subflow #{id}"
  %w[src dst].zip(tuple.byteslice(1, length - 1).unpack("a16 a16")).each do |name, bytes|
    number, host = Socket.unpack_sockaddr_in(bytes)
    puts "\tip #{name} : #{host} #{name} port : #{number}"
  end
end

info, length = "\0" * 512, [512].pack("I")
address = ->(string) { Fiddle::Pointer[string].to_i }
get(SUB_GETSOCKOPT, [opened, Socket::IPPROTO_TCP, Socket::TCP_INFO, address[info], address[length]].pack("Cx3iix4QQ"))
puts "TCP_INFO of #{opened}: length #{length.unpack1("I")} state #{info.unpack1("C")} snd_mss #{info.unpack1("x16I")}"

failed = 0
tos = [0x10].pack("i")
request = [opened, Socket::IPPROTO_IP, Socket::IP_TOS, address[tos], 4].pack("Cx3iix4QQ")
if SETSOCKOPT.call($socket.fileno, Socket::IPPROTO_TCP, SUB_SETSOCKOPT, request, request.bytesize) < 0
  warn "MPTCP_SUB_SETSOCKOPT(IP_TOS): #{SystemCallError.new(Fiddle.last_error).message}"
  failed = 1
else
  puts "IP_TOS of #{opened}: set to 16"
end

pause("open")
get(CLOSE_SUB_ID, [opened].pack("C"))
puts "closed : #{opened}"
print_ids
pause("closed")
exit failed
