# What Proxmox VE does to the directory of a storage of type `dir` (PVE::Storage::DirPlugin, Plugin,
# PVE::API2::Storage::Status and Content), call by call, where its own modules are not. Dies with what
# it would tell its user.
#
# usage: proxmox.pl MOUNT_POINT PATH COMMAND [ARGUMENT...]

use strict;
use warnings;
use Cwd qw(abs_path);
use Errno qw(ENOENT);
use Fcntl ':mode';
use File::Basename qw(dirname);
use File::Path qw(make_path);

my ($mountpoint, $path, $command, @arguments) = @ARGV;
my $store = 'isotope';
# Where it waits for a directory that may hang.
my $timeout = 2;
my %subdirs = (
    iso => 'template/iso', import => 'import', vztmpl => 'template/cache', backup => 'dump',
    images => 'images', rootdir => 'private', snippets => 'snippets',
);
my %listed = (
    iso => qr{/([^/]+\.(?:iso|img))$}i,
    import => qr{/([-a-zA-Z0-9.+=_]+\.(?:ova|ovf|qcow2|raw|vmdk))$}i,
);
my %volume = (
    iso => qr{^[^/]+\.(?:iso|img)$}i,
    import => qr{^[- a-zA-Z0-9.+=_]+\.(?:ova|ovf|qcow2|raw|vmdk)$},
);

sub run { system(@_) == 0 or die "$_[0] failed\n" }

# In a process of its own, for a limited time.
sub in_time {
    my ($code) = @_;
    my $pid = fork() // die "fork: $!\n";
    if (!$pid) { alarm $timeout; exit($code->() ? 0 : 1) }
    waitpid($pid, 0);
    return $? == 0;
}

sub mounted {
    my $real = abs_path($mountpoint) // return 0;
    open(my $mounts, '<', '/proc/mounts') or die "/proc/mounts: $!\n";
    my @points = map { my $it = (split / /)[1]; $it =~ s/\\(\d{3})/chr oct $1/ger } <$mounts>;
    return scalar grep { $_ eq $real } @points;
}

sub activate {
    die "directory is expected to be a mount point but is not mounted: '$mountpoint'\n" if !mounted();
    in_time(sub { -d $path }) or die "directory '$path' does not exist or is unreachable\n";
    my %resolved;
    for my $type (sort keys %subdirs) {
        # With create-subdirs, which is the default: mkdir of each level that is not there.
        make_path("$path/$subdirs{$type}");
        my $dir = abs_path("$path/$subdirs{$type}") // next;
        die "$dir is used for several content types\n" if $resolved{$dir}++;
    }
}

# storage:type/name, as machines' configurations hold it.
sub file_of {
    my ($volid) = @_;
    my ($type, $name) = $volid =~ m{^[a-z][-a-z0-9_.]*[a-z0-9]:(iso|import)/(.+)$}i;
    $type && $name =~ $volume{$type} or die "unable to parse volume ID '$volid'\n";
    die "'$volid' cannot stand in a configuration\n" if $volid =~ /[,\s]/;
    return "$path/$subdirs{$type}/$name";
}

sub destination {
    my ($type, $name) = @_;
    $name =~ s{^.*[/\\]}{};
    $name =~ s{[^-a-zA-Z0-9_.+=]}{_}g;
    "/$name" =~ $listed{$type} or die "wrong file extension\n";
    activate();
    make_path("$path/$subdirs{$type}");
    return "$path/$subdirs{$type}/$name";
}

my %commands = (
    activate => \&activate,
    status => sub {
        return print "offline\n" if !mounted();
        in_time(sub { run('stat', '-f', '--printf=%S %b %a\n', '--', $path); 1 }) or print "offline\n";
    },
    list => sub {
        my ($type) = @_;
        for my $file (<$path/$subdirs{$type}/*>) {
            my @stat = stat($file);
            next if !@stat || S_ISDIR($stat[2]) || $file !~ $listed{$type};
            my $volid = "$store:$type/$1";
            -e file_of($volid) or die "volume '$volid' does not exist\n";
            print "$volid $stat[7]\n";
        }
    },
    info => sub { run('qemu-img', 'info', '--output=json', file_of(@_)) },
    upload => sub {
        my ($type, $from, $name) = @_;
        my $to = destination($type, $name);
        chmod 0644, $from;
        # It overwrites what is there.
        return if system('cp', '--', $from, $to) == 0;
        unlink $to or $! == ENOENT or die "cleanup failed: $!\n";
        die "import failed\n";
    },
    download => sub {
        my ($type, $url, $name, $sum) = @_;
        my $to = destination($type, $name);
        die "refusing to override existing file '$to'\n" if -f $to;
        my $part = "$to.tmp_dwnl.$$";
        my $done = eval {
            run('curl', '-sS', '-o', $part, '--', $url);
            my ($found) = split ' ', `sha256sum -- '$part'`;
            die "checksum mismatch: got '$found' != expect '$sum'\n" if $found ne $sum;
            rename($part, $to) or die "unable to rename temporary file: $!\n";
        };
        return if $done;
        my $error = $@;
        unlink $part or $! == ENOENT or warn "unable to clean up '$part': $!\n";
        die $error;
    },
    remove => sub {
        my $file = file_of(@_);
        -f $file || -l $file or die "disk image '$file' does not exist\n";
        unlink($file) or die "unlink '$file' failed - $!\n";
        # As after the last disk of a machine; what comes of it does not matter.
        rmdir(dirname($file));
    },
    allocate => sub {
        my ($vmid) = @_;
        make_path("$path/images/$vmid", { error => \my $errors });
        die join("\n", map { values %$_ } @$errors) . "\n" if @$errors;
    },
);
$commands{$command}->(@arguments);
