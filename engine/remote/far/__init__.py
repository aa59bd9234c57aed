"""The other end of a connection: the standard library only, copied to the host as one file and run there.

Must not import anything of ours but itself, nor know why it is asked. It ends when the connection does.
"""
